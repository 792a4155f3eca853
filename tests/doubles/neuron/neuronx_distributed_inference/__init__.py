"""A double of NxD Inference for tests, after its source of version 0.9.0: names, defaults and refusals; tinymoe on a CPU."""
