"""The same convolutions without the copy engine, as GPUs before Hopper run them."""

from fastpeer.kernels.convolution_tiles import Tile
from tests.kernels.ahead_of_time.convolution import back, forward

CAPABILITIES = (80,)
DAILY = ("back-strided",)
TILE = Tile(128, 64, 8, 3)
CASES = {
    "forward-64": forward((64, 64), 32, TILE, boxes=False),
    "back-64": back((64, 64), 32, TILE, boxes=False),
    "forward-strided": forward((160, 320), 32, TILE, stride=2, boxes=False),
    "back-strided": back((160, 320), 32, TILE, stride=2, boxes=False),
    "forward-signs": forward((64, 64), 32, TILE, packs=True, boxes=False),
    "back-signs": back((160, 320), 32, TILE, stride=2, packs=True, boxes=False),
    "forward-1x1": forward((16, 96), 32, TILE, 1, boxes=False),
    "back-1x1-strided": back((256, 512), 8, TILE, 1, 2, boxes=False),
}
