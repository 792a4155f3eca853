"""A double of the part of torch-neuronx that names the platform."""
