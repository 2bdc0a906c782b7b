"""Keeps the daemon's listeners, so that no worker's death closes one: a class for each mode."""

from greeterd.master.escrow.escrow import Escrow
from greeterd.master.escrow.listeners import BLOCKING_TIMEOUT, Place

__all__ = ["BLOCKING_TIMEOUT", "Escrow", "Place"]
