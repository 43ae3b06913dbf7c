"""One self-contained HTML page of a run, or of several.

python -m resa_jax.report --workdir=DIR[,DIR,...] [--output=DIR/report.html]

It shows the recipe, the curves of training, accuracy and clustering, the results that `evaluate`
left in DIR/evaluation, pictures of the encodings, throughput and wall time. For the clustering of
every layer over training, run `evaluate --protocol=clustering --all_checkpoints` first.
Of several runs it shows the curves over each other and where the recipes differ, by default in
comparison.html.
"""

from absl import flags

from resa_jax.cli import run
from resa_jax.data.check import check_source
from resa_jax.data.decoding import Decoding
from resa_jax.paths import AnyPath, as_path
from resa_jax.report.run_record import read_run


_WORKDIR = flags.DEFINE_list("workdir", None, "Folders of runs.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "HTML file; default WORKDIR/report.html.")
_PICTURES = flags.DEFINE_bool("pictures", True, "Also draw pictures, which needs the images.")
_SOURCE = flags.DEFINE_string("source", None, "Images for the pictures; default the run's own.")
_MAX_IMAGES = flags.DEFINE_integer("max_images", 2000, "Images in the pictures.", lower_bound=20)


def main(arguments: list[str]) -> None:
    """Checks the folder before anything heavy is imported, then writes the page."""
    del arguments
    records = [read_run(as_path(folder, "--workdir=")) for folder in _WORKDIR.value]
    if len(records) > 1:
        from resa_jax.report.comparison import render_comparison

        _write(render_comparison(records), as_path(_OUTPUT.value or "comparison.html"))
        return
    (record,) = records
    source_name = _SOURCE.value or record.config["data"]["source"]
    pictures = _PICTURES.value and record.has_checkpoint
    if pictures:
        check_source(source_name, None)

    from resa_jax.report.page import render_page

    gallery = []
    if pictures:
        from resa_jax.data.sources import open_source
        from resa_jax.report.gallery import draw_gallery

        data = record.config["data"]
        options = {"classes": data["classes"], "long_tail": data["long_tail"]}
        if _SOURCE.value is not None:
            options = {}
        source = open_source(
            source_name, Decoding.of(data), on_bad_image=data["on_bad_image"], **options
        )
        gallery = draw_gallery(record.workdir, source, source_name, max_images=_MAX_IMAGES.value)
    output = as_path(_OUTPUT.value or record.workdir / "report.html", "--output=")
    _write(render_page(record, gallery), output)


def _write(page: str, output: AnyPath) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    print(f"The report is in {output}.")


if __name__ == "__main__":
    run(main)
