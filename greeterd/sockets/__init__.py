"""Addresses, listeners, steering, descriptor passing, and the kernel's figures of sockets."""
