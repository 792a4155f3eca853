"""What is wrong with a quantised checkpoint, told from its headers, its scales and its configuration alone."""
