"""Addresses, listeners, steering, passing of descriptors, and what the kernel says of them."""
