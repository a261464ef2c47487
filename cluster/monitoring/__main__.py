"""`python -m cluster.monitoring` writes the files again."""

from cluster.monitoring.files import made

for path, text in made().items():
    path.write_text(text, encoding="utf-8")
    print(path)
