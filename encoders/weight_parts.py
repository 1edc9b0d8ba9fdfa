"""Parts of a network's weights by the paths of its sub-modules, for everything that merges networks."""

from collections.abc import Mapping, Sequence

from torch import Tensor

State = Mapping[str, Tensor]

EVERYTHING = ("",)


def select(state: State, parts: Sequence[str] = EVERYTHING) -> dict[str, Tensor]:
    """Return the entries that lie under any of the paths ``parts``, in the order of the state.

    Parameters
    ----------
    state : mapping of str to Tensor
    parts : sequence of str
        Paths of sub-modules or parameters, for example ``("blocks", "head.weight")``; an empty path is everything.

    Raises
    ------
    ValueError
        If a path matches nothing.
    """
    for part in parts:
        if not any(_is_under(name, part) for name in state):
            known = sorted({name.split(".")[0] for name in state})
            raise ValueError(f"parts has {part!r}, which matches no weight; expected paths that begin with {known}")
    return {name: value for name, value in state.items() if any(_is_under(name, part) for part in parts)}


def outside(state: State, stem: Sequence[str]) -> tuple[str, ...]:
    """Return the top-level paths that hold weights and are not in ``stem``, for example everything behind a stem.

    Raises
    ------
    ValueError
        If ``stem`` names something without weights, or leaves nothing.
    """
    select(state, stem)
    rest = tuple(dict.fromkeys(name.split(".")[0] for name in state if not any(_is_under(name, one) for one in stem)))
    split = [one for one in stem if "." in one and one.split(".")[0] in rest]
    if split or not rest:
        raise ValueError(f"stem is {list(stem)}, expected some whole top-level sub-modules; list the rest by hand")
    return rest


def matching_parts(states: Sequence[State], parts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Select ``parts`` of every state.

    Raises
    ------
    ValueError
        If names or shapes differ, see also `select`.
    """
    chosen = [select(state, parts) for state in states]
    first = chosen[0]
    for number, other in enumerate(chosen[1:], start=1):
        odd = sorted(set(first) ^ set(other))
        if odd:
            raise ValueError(
                f"networks 0 and {number} differ in the weights {odd[:5]}, expected the same names; build both from "
                "one config, or leave them out of parts"
            )
        for name, value in first.items():
            if value.shape != other[name].shape:
                raise ValueError(
                    f"{name!r} is {tuple(value.shape)} in network 0 and {tuple(other[name].shape)} in network "
                    f"{number}, expected one shape; build both from one config, or leave it out of parts"
                )
    return chosen


def _is_under(name: str, part: str) -> bool:
    return not part or name == part or name.startswith(f"{part}.")
