"""How to attack: projected gradient ascent in the L-infinity ball, and accuracy under it."""
