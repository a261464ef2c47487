"""Cut a checkpoint's adapter down to what ships with the starter: bfloat16, projector and LoRA, nothing else.

python tools/ship_adapter.py runs/starter-align-on/checkpoints/step_000480 speechsum/starter/aligned.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from learner.checkpoint import export_adapter, load_checkpoint, verify


def main(checkpoint: Path, out: Path) -> int:
    """Returns 0, or 2 when the checkpoint is damaged."""
    if problem := verify(checkpoint):
        print(problem, file=sys.stderr)
        return 2
    export_adapter(out, load_checkpoint(checkpoint)[0], torch.bfloat16)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
