"""The checks of numbers of the core, under the name that the methods of this room use."""

from ..core.arguments import need_between, need_count, need_not_negative, need_positive

__all__ = ["need_between", "need_count", "need_not_negative", "need_positive"]
