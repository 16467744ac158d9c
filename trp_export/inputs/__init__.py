"""What a network is fed: its inputs as the graph declares them, images and how they are prepared."""
