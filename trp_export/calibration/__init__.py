"""What a few images tell about a network: moments of its layers' inputs, and how much each layer matters."""
