"""Looking at, or standing in for, every operation that PyTorch runs."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class EveryCall(TorchDispatchMode):
    """Inside, `call` runs in place of every operation; what torch hands over has no types of its own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  # whatever torch dispatches
        types: Any,  # noqa: ANN401  # torch's signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """What `call` gives."""
        return self.call(func, args, kwargs or {})

    @abstractmethod
    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401  # as above
        """Run `func`, or what stands for it."""
