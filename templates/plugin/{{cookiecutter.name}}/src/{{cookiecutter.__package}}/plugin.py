"""What this distribution adds to lmflow: {{ cookiecutter.__words }} `{{ cookiecutter.__component }}`."""

from lmflow.components import {{ cookiecutter.__base }}
from lmflow.hookspecs import hookimpl

from {{ cookiecutter.__package }}.{{ cookiecutter.__module }} import {{ cookiecutter.__class }}

LMFLOW_INTERFACE = 2


@hookimpl
def lmflow_{{ cookiecutter.__module }}s() -> list[type[{{ cookiecutter.__base }}]]:
    """Offer what `--{{ cookiecutter.__slot }} {{ cookiecutter.__component }}` chooses."""
    return [{{ cookiecutter.__class }}]
