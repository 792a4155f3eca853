"""Part of the double of SGLang."""
