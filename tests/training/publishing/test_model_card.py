"""What a model card says of a configuration."""

from training.publishing.model_card import without_folders


def test_paths_are_names_alone_and_nothing_else_is_cut() -> None:
    data = {
        "source": "/home/me/texts/a.txt,hub:owner/name,b/c.jsonl",
        "mix": "1=/secret/a.txt",
        "symbols": "+-*/0123456789",
        "include": "src/**/*.py",
        "revision": "refs/pr/3",
        "subset": "en/de",
        "source_column": "a/b",
    }
    assert without_folders({"data": data, "init_from": "/home/me/runs/one", "seed": 1}) == {
        "data": data | {"source": "a.txt,hub:owner/name,c.jsonl", "mix": "1=a.txt"},
        "init_from": "one",
        "seed": 1,
    }
