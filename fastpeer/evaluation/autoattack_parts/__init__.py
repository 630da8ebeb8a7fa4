"""AutoAttack's attacks: what they attack (network.py), each by itself, and pyautoattack's (official.py)."""
