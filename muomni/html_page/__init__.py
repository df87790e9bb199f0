"""Reports as one HTML file that opens offline, on a phone as on a screen, in light and in dark.

Nothing is fetched and nothing runs: styles, plots, pictures and sounds are in the file. Templates extend `base.html`.
"""

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader


def render(package: str, template: str, **values: Any) -> str:
    """A page from a Jinja template of a package.

    Args:
        package: whose folder holds the template.
        template: its file name.
        values: what the template names; text is escaped.
    """
    templates = ChoiceLoader([PackageLoader(package, ""), PackageLoader("muomni.html_page", "")])
    return Environment(loader=templates, autoescape=True).get_template(template).render(**values)
