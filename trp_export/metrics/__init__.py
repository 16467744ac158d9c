"""What users measure: each metric reads labels, keeps a prediction of each image, and scores two models."""
