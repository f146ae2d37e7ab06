"""Pages from jinja2 templates that lie beside the code that fills them."""

from typing import Any

import jinja2


def render(package: str, template: str, /, **values: Any) -> str:
    """Return a template of a package, filled; values are escaped unless the template says `safe`.

    Args:
        package: Name of the package that holds the template, such as `tpo_jax.training`.
        template: File name of the template in it.
        values: What the template names; a name that is missing is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
