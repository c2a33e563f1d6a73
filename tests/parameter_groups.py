"""Groups of parameters by the patterns of `group_matcher`, as timm sorts them."""

import re


def groups(network, coarse=False):
    """Return the names of parameters by group, as timm's `group_parameters` sorts them."""
    matcher = network.group_matcher(coarse)
    patterns = [(re.compile(matcher["stem"]), (0,))]
    patterns += [(re.compile(pattern), (1, *number)) for pattern, number in matcher["blocks"]]
    found = {}
    for name, _ in network.named_parameters():
        key = next((key for pattern, key in patterns if pattern.match(name)), (float("inf"),))
        found.setdefault(key, []).append(name)
    return [found[key] for key in sorted(found)]
