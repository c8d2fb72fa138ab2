"""torch's containers of modules, of which a type checker knows what they hold; at run time they are torch's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Generic, TypeVar, overload

    M = TypeVar("M", bound=nn.Module, covariant=True)

    class ModuleList(nn.ModuleList, Generic[M]):
        """Modules of one kind."""

        def __init__(self, modules: Iterable[M] | None = None) -> None: ...
        @overload
        def __getitem__(self, idx: slice) -> ModuleList[M]: ...
        @overload
        def __getitem__(self, idx: int) -> M: ...
        def __getitem__(self, idx: int | slice) -> M | ModuleList[M]: ...
        def __iter__(self) -> Iterator[M]: ...

    class Sequential(nn.Sequential, Generic[M]):
        """Modules of one kind, one after the other."""

        @overload
        def __getitem__(self, idx: slice) -> Sequential[M]: ...
        @overload
        def __getitem__(self, idx: int) -> M: ...
        def __getitem__(self, idx: int | slice) -> M | Sequential[M]: ...
        def __iter__(self) -> Iterator[M]: ...

else:
    ModuleList, Sequential = nn.ModuleList, nn.Sequential
