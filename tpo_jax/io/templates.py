"""Pages from jinja2 templates that lie beside the code that fills them."""

from typing import Any

import jinja2


def render(package: str, template: str, /, **values: Any) -> str:
    """Return a template of a package, filled with the values it names; see `load`."""
    return load(package, template).render(values)


def load(package: str, template: str) -> jinja2.Template:
    """Return a template; values are escaped unless it says `safe`, and a missing one is an error.

    Args:
        package: Name of the package that holds the template, such as `tpo_jax.training`.
        template: Path of the template in it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template)
