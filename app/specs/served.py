"""What rows captured through a server can be: its top k, one bucket for the rest, T = 1."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.specs.teacher import PROFILES, CaptureProfile


@dataclass(frozen=True, slots=True)
class ProfileProblem:
    """Why a profile cannot be captured through a server; `field` is the setting it is about."""

    field: str
    sentence: str
    label: str
    """What would mend it, as a button says it."""
    values: Mapping[str, str]
    """Settings that mend it, by the names of their fields."""


def within(top: int) -> dict[str, str]:
    """Return the settings of a capture that a server of the top `top` gives, as typed."""
    usual = PROFILES["standard"]
    heads = {name: str(min(int(usual[name]), top)) for name in ("k_min", "k_max")}
    return {"profile": "standard", "tail_samples": "0", "temperatures": "1", **heads}


def profile_problems(top: int, profile: CaptureProfile) -> list[ProfileProblem]:
    """Return what a server that gives the top `top` a token cannot give of a profile."""
    found = []
    if profile.name != "standard" and (profile.name != "audit" or profile.k_max > top):
        found.append(
            ProfileProblem(
                "profile",
                f"The teacher is behind a server, which gives its likeliest {top} tokens only, so "
                f"the profile {profile.name} cannot be captured through it: take standard.",
                "Use standard",
                within(top),
            )
        )
    elif profile.k_max > top:
        found.append(
            ProfileProblem(
                "k_max",
                f"The server gives at most {top} log-probabilities a token, and a row may keep "
                f"{profile.k_max}: set it to {top} or less (vLLM: --max-logprobs raises it; "
                "register the server again then).",
                f"Use {top}",
                {"k_max": str(top), "k_min": str(min(profile.k_min, top))},
            )
        )
    if profile.temperatures != (1.0,):
        grid = ", ".join(f"{t:g}" for t in profile.temperatures)
        found.append(
            ProfileProblem(
                "temperatures",
                "The teacher is behind a server, which gives log-probabilities at T = 1 only: the "
                "normaliser of other temperatures needs the whole vocabulary. The grid is "
                f"{grid}; set it to 1.",
                "Use T = 1",
                {"temperatures": "1", "temperature": "1"},
            )
        )
    return found
