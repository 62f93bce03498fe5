"""What this distribution adds to lmflow: {{ cookiecutter.__words }} `{{ cookiecutter.__component }}`."""

{% if cookiecutter.kind == "command" -%}
from collections.abc import Callable, Sequence

from lmflow.components import Command
from lmflow.hookspecs import hookimpl
from lmflow.plugins import Plugins

LMFLOW_INTERFACE = 2


@hookimpl
def lmflow_commands() -> list[Command]:
    """Offer what `lmflow {{ cookiecutter.__component }}` calls."""
    return [Command("{{ cookiecutter.__component }}", "Count the tokens of text files.", make)]


def make(
    plugins: Plugins, arguments: Sequence[str]
) -> tuple[Callable[..., None], list[str]] | None:
    """Load the command when it is called, not when plugins are listed."""
    from {{ cookiecutter.__package }}.command import make_command

    return make_command(plugins, arguments)
{% elif cookiecutter.kind == "listener" -%}
from {{ cookiecutter.__package }}.listener import lmflow_run_finished

LMFLOW_INTERFACE = 2

__all__ = ["lmflow_run_finished"]  # every event that is to be heard
{% else -%}
from lmflow.components import {{ cookiecutter.__base }}
from lmflow.hookspecs import hookimpl

from {{ cookiecutter.__package }}.{{ cookiecutter.__module }} import {{ cookiecutter.__class }}

LMFLOW_INTERFACE = 2


@hookimpl
def lmflow_{{ cookiecutter.__module }}s() -> list[type[{{ cookiecutter.__base }}]]:
    """Offer what `{{ cookiecutter.__chosen }}` chooses."""
    return [{{ cookiecutter.__class }}]
{% endif -%}
