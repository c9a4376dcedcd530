"""Write the photographs inside scikit-image, scikit-learn and matplotlib to one npz, uint8 `[height, width, 3]` each.

    python read_photographs.py OUT.npz

Only files that lie in the installed packages are read: scikit-image would fetch the others from the internet.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
from PIL import Image

FILES = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "brick": ("skimage", "data/brick.png"),
    "camera": ("skimage", "data/camera.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
}


def main(out: str) -> None:
    """Read them all, write them all."""
    photographs = {}
    for name, (package, file) in FILES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{package} is not installed here")
        photographs[name] = np.asarray(Image.open(Path(spec.origin).parent / file).convert("RGB"), dtype=np.uint8)
    np.savez(out, **photographs)


if __name__ == "__main__":
    main(*sys.argv[1:])
