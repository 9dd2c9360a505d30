"""What a CUDA card should settle, in stages of items that cannot harm each other: `make gpu`."""
