"""Sites of attention policies: a block's attention visits all tiles, or those a policy chooses."""

from __future__ import annotations

SITE = ".attention_policy"


def policy_site(block: str) -> str:
    """Id of the site of a block's attention policy."""
    return block + SITE


def policy_block(site: str) -> str:
    """The block whose policy a site is; empty for sites of other kinds."""
    return site.removesuffix(SITE) if site.endswith(SITE) else ""


def policy_work(policy: str, block: str) -> str:
    """What a machine profile times a policy by: what it adds to a block's time, in one forward."""
    return f"attention {policy} {block}"
