"""fastpeer: trains small networks that withstand adversarial attacks, with a peer instead of a teacher."""

import os.path

__version__ = "0.1.0"

if not os.path.isdir(os.path.join(os.path.dirname(__file__), "kernels")):
    # In the source tree, kernels/ and data_prep/ lie beside this folder; an installation puts them into it.
    __path__.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
