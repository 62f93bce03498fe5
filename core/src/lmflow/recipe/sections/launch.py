"""The `launch` section of a recipe."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

ADDRESS = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})")


class LaunchOptions(BaseModel):
    """In how many processes, on how many machines."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    processes: int = Field(1, gt=0, description="Processes on each machine that train together; one per GPU is usual.")
    strategy: Literal["ddp", "fsdp", "zero1", "zero2", "zero3"] = Field(
        "ddp", description="What each process holds: the whole model (ddp), or a part of what the others hold too."
    )
    hosts: int = Field(1, gt=0, description="Machines; the same command is given on each, with another host_rank.")
    host_rank: int = Field(0, ge=0, exclude=True, description="Which of the machines this is, from 0.")
    address: str | None = Field(
        None, description="HOST:PORT of machine 0 where the processes meet; needed for several machines."
    )
    timeout: float = Field(30.0, gt=0, description="Minutes that a process waits for the others before it gives up.")

    grace: float = Field(
        90.0,
        gt=0,
        description="Seconds that the processes have to stop at a safe place once a signal asks them to; then they are "
        "ended, and what came after the last checkpoint is lost.",
    )

    @field_validator("address")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        found = ADDRESS.fullmatch(value) if value is not None else None
        if value is not None and not (found and 0 < int(found[2]) < 65536):
            raise ValueError(f"expected HOST:PORT, got {value!r}")
        return value

    @model_validator(mode="after")
    def _belongs_together(self) -> LaunchOptions:
        if self.hosts > 1 and self.address is None:
            raise ValueError(f"{self.hosts} hosts need launch.address, the HOST:PORT of host 0 where processes meet")
        if self.host_rank >= self.hosts:
            raise ValueError(f"host_rank is {self.host_rank}, but the {self.hosts} hosts count from 0")
        return self

    def missing(self) -> str | None:
        """What has to be installed for the strategy and is not, in one line; None if nothing."""
        if self.total > 1 and self.strategy.startswith("zero") and find_spec("deepspeed") is None:
            return f"{self.strategy} needs DeepSpeed, which is not installed: pip install 'lmflow-core[deepspeed]'"
        return None

    @property
    def total(self) -> int:
        """Processes on all machines together."""
        return self.processes * self.hosts
