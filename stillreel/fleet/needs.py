"""Which machine each model needs. What a model is itself stands in `models/registry.py`."""

from __future__ import annotations

from typing import Final

from stillreel.errors import ModelUnavailable
from stillreel.fleet.provider import Need

NEEDS: Final[dict[str, Need]] = {
    need.model: need
    for need in (
        # Names as Vast.ai shows them; 40 GB and 80 GB cards share a name. The driver must know the
        # CUDA of the torch wheels (12.8). Weights are what a host downloads in bf16, derived.
        Need(
            "ltx-2",
            "vast",
            gpu_names=("A100 PCIE", "A100 SXM4"),
            gpu_gb=(39.0, 48.0),
            ram_gb=(32.0, 2000.0),
            disk_gb=150,
            cuda=12.8,
            inet_down=200.0,
            reliability=0.98,
            weights_gb=77.0,
        ),
        Need(
            "wan-2.2",
            "ec2",
            gpu_names=("A10G", "A10", "RTX 3090", "RTX 4090"),
            gpu_gb=(21.0, 26.0),
            ram_gb=(15.0, 2000.0),
            disk_gb=100,
            cuda=12.8,
            inet_down=200.0,
            reliability=0.98,
            weights_gb=34.0,
            instance_type="g5.xlarge",
        ),
        Need(
            "preview",
            "vast",
            ram_gb=(4.0, 2000.0),
            disk_gb=20,
            inet_down=50.0,
            reliability=0.95,
            instance_type="c7i.large",
        ),
    )
}


def need_of(model: str) -> Need:
    """The need of a model; ModelUnavailable for one that no rented machine serves."""
    if model not in NEEDS:
        raise ModelUnavailable(
            f"no machine is rented for the model {model!r}; rented are those for {sorted(NEEDS)}"
        )
    return NEEDS[model]
