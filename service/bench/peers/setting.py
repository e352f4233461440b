"""How a peer shares out the CPUs, and what stands in the environment of its processes for it."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "PEER_"


class Setting(BaseSettings):
    """One way to run a peer; read from the environment by the processes that run it."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    workers: int = Field(1, ge=1, description="processes that compute")
    threads: int = Field(1, ge=1, description="of the runtime in each of them, for one patch")
    patches: int = Field(1, ge=1, description="that one run of the features graph takes")
    ours: bool = Field(False, description="whether our backend runs the features graph, in its default runtime")
    screens: int = Field(1, ge=1, description="that the peer's own batching puts together at most")

    def __str__(self) -> str:
        shares = [
            f"{_count(self.workers, 'worker')} of {_count(self.threads, 'thread')}",
            f"{_count(self.patches, 'patch')} a run",
        ]
        shares += ["our session"] if self.ours else []
        return ", ".join([*shares, *([f"up to {self.screens} screens a batch"] if self.screens > 1 else [])])

    def environment(self) -> dict[str, str]:
        """The variables from which a process reads the same again."""
        return {f"{PREFIX}{name.upper()}": str(value) for name, value in self.model_dump().items()}


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
