"""The sampler of weights distilled by DMD, FastWan among them: three steps, each with new noise."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch

SIGMAS = (1.0, 0.757, 0.522)
"""Of timesteps 1000, 757 and 522: FastVideo's `dmd_denoising_steps` for FastWan."""


def dmd_scheduler(generator: torch.Generator) -> Any:
    """A scheduler for one video: each step predicts the whole of it, then adds noise again.

    The noise comes from `generator`. The pipelines do not hand theirs to the scheduler, and the
    one in diffusers draws from the process's: the same seed would give another video. Give it the
    pipeline's own generator, which has moved on: a second one of the same seed would start with
    the very noise that the video started from.
    """
    scheduler = _scheduler_class()(shift=1.0, stochastic_sampling=True)
    scheduler.generator = generator
    return scheduler


@cache
def _scheduler_class() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.utils.torch_utils import randn_tensor

    base: Any = FlowMatchEulerDiscreteScheduler  # its step takes arguments that no pipeline gives

    class DmdScheduler(base):
        generator: torch.Generator

        def set_timesteps(self, *_: Any, device: Any = None, **__: Any) -> None:
            super().set_timesteps(sigmas=list(SIGMAS), device=device)

        def step(
            self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **_: Any
        ) -> tuple[torch.Tensor]:
            if self.step_index is None:
                self._init_step_index(timestep)
            index = cast(int, self.step_index)
            sigma, following = self.sigmas[index : index + 2]
            self._step_index = index + 1
            predicted = sample - sigma * model_output.to(sample.dtype)
            if following == 0:
                return (predicted,)
            noise = randn_tensor(
                sample.shape, generator=self.generator, device=sample.device, dtype=sample.dtype
            )
            return ((1 - following) * predicted + following * noise,)

    return DmdScheduler
