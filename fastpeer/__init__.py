"""fastpeer: trains small networks that withstand adversarial attacks, with a peer instead of a teacher."""

__version__ = "0.1.0"
