"""What is known of a model without running it: its names, its weights, its shape, the room it takes."""
