"""The frame of the report's pages: one file with everything inside."""

from html import escape

from resa_jax.report.figures import Curve, curves_figure


_CSS = """
body { font: 15px/1.5 system-ui, "Helvetica Neue", Arial, sans-serif; color: #1d2433;
       margin: 0 auto; max-width: 1120px; padding: 32px 24px 64px; background: #fff; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 12px; border-bottom: 1px solid #d9dde5; padding-bottom: 4px; }
h3 { font-size: 15px; margin: 16px 0 2px; }
p { margin: 4px 0 10px; max-width: 75ch; } .quiet { color: #5b6475; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px;
         margin: 18px 0; }
.tile { background: #f4f6fa; border-radius: 8px; padding: 10px 14px; }
.tile b { display: block; font-size: 22px; } .tile span { color: #5b6475; font-size: 13px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 12px; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: 0 0 18px; } figcaption { color: #5b6475; font-size: 13px; max-width: 90ch; }
.scroll { overflow-x: auto; } .scroll td:first-child { white-space: nowrap; }
table { border-collapse: collapse; font-size: 13px; margin: 6px 0 14px; }
th, td { padding: 3px 12px 3px 0; text-align: left; border-bottom: 1px solid #e7eaf0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.code { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 12px;
          overflow-wrap: anywhere; }
.recipe { columns: 2 420px; }
.recipe table { width: 100%; break-inside: avoid; table-layout: fixed; }
"""


def document(title: str, sections: list[str]) -> str:
    """A page, complete in itself: no script, no link, no file beside it."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def section(title: str, content: str) -> str:
    """A part of a page under its title."""
    return f"<section><h2>{title}</h2>{content}</section>"


def grid(parts: list[str]) -> str:
    """Plots, or what stands in their place, side by side."""
    return f'<div class="grid">{"".join(parts)}</div>'


def plot(title: str, curves: dict[str, Curve], colors: dict[str, str] | None = None) -> str:
    """Curves over the epochs; those of one point each are numbers, which no line would show."""
    if all(len(x) == 1 for x, _ in curves.values()):
        numbers = ", ".join(f"{value[0]:.4g} {escape(name)}" for name, (_, value) in curves.items())
        epochs = {x[0] for x, _ in curves.values()}
        when = f"at epoch {epochs.pop():.3g}" if len(epochs) == 1 else "at their last epochs"
        return f'<div class="tile"><b>{numbers}</b><span>{escape(title)}, {when}</span></div>'
    uri = curves_figure(title, curves, x_label="epoch", colors=colors)
    return f'<img alt="{escape(title)}" src="{uri}">'


def tile(value: str, name: str) -> str:
    """A number with its name below."""
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
