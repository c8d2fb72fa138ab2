"""Griffe extension: cross-references of the docstrings, written as Sphinx's roles, become links of the site."""

from __future__ import annotations

import re

from griffe import Alias, Extension, Object

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([\w.]+)`")


class SphinxRoles(Extension):
    """Turn ``:func:`name``` into a link to what the name means where it stands, or into code without a link."""

    def on_object(self, *, obj: Object, **kwargs) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(lambda role: _link(obj, role[1]), obj.docstring.value)


def _link(obj: Object | Alias, name: str) -> str:
    path = name if name.startswith("nnunet_din.") else f"{_scope_of(obj, name.split('.')[0])}.{name}"
    return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'


def _scope_of(obj: Object | Alias, name: str) -> str:
    """Path of the innermost class or module around an object that has a member of this name, else its module's."""
    scope: Object | Alias | None = obj
    while scope is not None:
        if name in scope.members:
            return scope.path
        scope = scope.parent
    return obj.module.path
