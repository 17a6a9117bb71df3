"""World tokens per second: `tokenize-world --tokenizer kmeans` beside the frame-by-frame way and beside the bare backbone.

`ratio`: with the small offline backbone, our frames per second over those of the experiment's own way: `LeRobotDataset[i]`, a float
picture through a processor, one frame per forward pass. `floor_ratio`: at DINOv2-base geometry (random weights), ours, with
decoding, resizing, assigning and writing, over the backbone alone on batches that lie in memory.

    python scripts/bench/tokenize.py            # some minutes on a CPU
    python scripts/bench/tokenize.py --quick    # seconds: shows that everything runs
    python scripts/bench/tokenize.py --device cuda --frames 400 --dino-frames 2000 --batch 64
"""

import os
import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # behind the standard library, whose `tokenize` others import
    from _tokenize_bench import main

    raise SystemExit(main(str(__doc__)))

# A neighbour in this folder, or what it imports, asked for the standard library's module: this folder comes first for it.
from importlib.util import module_from_spec, spec_from_file_location

_spec = spec_from_file_location("tokenize", os.path.join(os.path.dirname(os.__file__), "tokenize.py"))
assert _spec is not None
assert _spec.loader is not None
sys.modules["tokenize"] = module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["tokenize"])
