"""Results as text."""


def format_result(result: dict) -> str:
    """One result as text: what was scored, and a row for each entry of its results."""
    where = result["encoder"] or result["features"]
    step = f", step {result['step']}" if result.get("step") is not None else ""
    counts = f"{result['num_train']} samples"
    if result["num_test"] is not None:
        counts = f"{result['num_train']} to train, {result['num_test']} to test"
    lines = [f"{result['protocol']}: {where}{step}; {counts}, {result['num_classes']} classes"]
    rows = {name: flatten_scores(scores) for name, scores in result["results"].items()}
    columns = list(dict.fromkeys(column for scores in rows.values() for column in scores))
    width = max(map(len, rows))
    sizes = [max(len(column), 8) for column in columns]
    heads = (f"{column:>{size}}" for column, size in zip(columns, sizes, strict=True))
    lines.append(" " * width + "  " + "  ".join(heads))
    for name, scores in rows.items():
        cells = (
            f"{format_score(column, scores.get(column)):>{size}}"
            for column, size in zip(columns, sizes, strict=True)
        )
        lines.append(f"{name:<{width}}  " + "  ".join(cells))
    return "\n".join(lines)


def flatten_scores(scores: dict, prefix: str = "") -> dict[str, float]:
    """Nested scores side by side, named as in "last top1"."""
    flat: dict[str, float] = {}
    for name, value in scores.items():
        if isinstance(value, dict):
            flat |= flatten_scores(value, f"{prefix}{name} ")
        else:
            flat[prefix + name] = value
    return flat


def format_score(column: str, value: float | None) -> str:
    """A score as text: two decimals for percentages, four for fractions."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    percent = column.endswith(("top1", "top5", "accuracy"))
    return f"{value:.2f}" if percent else f"{value:z.4f}"
