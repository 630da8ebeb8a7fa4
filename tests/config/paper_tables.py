"""Tables 1, 3, 4 and 5 of the PeerAiD paper (Jung et al., CVPR 2024), in per cent.

Each line of figures: name, then clean, FGSM, PGD-20 and AutoAttack; in Table 1 for ResNet-18 and then for
WideResNet-34-10. In Table 3 and beyond, the name is that of the recipe.
"""

from collections.abc import Iterator

TABLE_1 = {
    "cifar10": """
        natural  95.42 35.74  0.00  0.00  96.08 45.92  0.00  0.00
        pgd-at   84.21 56.93 49.71 46.79  86.27 57.69 49.94 48.07
        trades   81.47 57.75 52.92 49.35  84.48 60.07 54.33 51.88
        akd2     83.99 59.52 53.72 50.12  87.83 64.14 56.68 54.25
        rslad    81.00 58.65 54.40 51.03  83.80 61.48 55.25 52.37
        iad      80.63 58.13 53.43 49.88  83.51 60.91 54.33 51.89
        cat      82.40 58.56 53.39 50.06  86.40 63.66 56.77 54.17
        adaad    81.41 57.45 53.51 50.08  84.49 60.65 55.98 53.38
        peeraid  85.01 61.28 54.36 52.57  85.64 63.40 56.81 55.21
    """,
    "cifar100": """
        natural  75.48  8.70  0.00  0.00  79.68 12.58  0.04  0.00
        pgd-at   57.30 28.47 24.15 21.84  59.57 30.17 25.73 23.99
        trades   54.90 30.93 28.29 23.69  55.70 32.53 30.02 26.07
        akd2     58.84 33.07 30.33 25.83  61.83 36.40 33.20 28.88
        rslad    55.45 33.11 30.78 25.96  57.42 33.95 30.75 27.20
        iad      54.98 32.87 30.28 25.44  57.92 34.30 31.47 27.55
        cat      57.81 33.94 31.44 25.93  61.68 36.82 32.95 28.39
        adaad    56.08 31.79 29.76 25.03  57.99 34.03 31.89 27.88
        peeraid  59.35 34.41 29.69 27.33  61.33 37.08 32.39 30.06
    """,
    "tiny": """
        natural  64.74  1.65  0.02  0.00  68.81  2.32  0.02  0.00
        pgd-at   46.25 24.47 22.53 17.80  51.10 27.50 24.83 20.57
        trades   48.87 24.64 22.31 16.90  52.49 27.61 25.36 19.67
        akd2     50.47 27.25 25.12 20.01  54.82 31.83 29.33 24.09
        rslad    43.19 24.61 22.92 17.17  51.06 30.28 28.35 22.80
        iad      47.67 26.11 23.86 18.88  45.96 27.15 25.72 20.80
        cat      40.66 23.19 22.06 15.19  40.85 24.78 23.20 16.76
        adaad    49.97 25.79 23.98 18.16  52.22 28.32 26.53 21.13
        peeraid  55.19 29.42 26.10 21.67  58.07 33.04 29.51 24.82
    """,
}
OTHER_TABLES = {
    3: """
        tiny-resnet18-natural-swa  67.42  2.22  0.04  0.00
        tiny-resnet18-pgd-at-swa   49.10 26.32 23.95 19.46
        tiny-resnet18-trades-swa   50.22 26.10 23.79 18.47
        tiny-resnet18-rslad-swa    42.13 24.33 22.99 17.32
        tiny-resnet18-iad-swa      48.70 26.94 24.88 19.62
        tiny-resnet18-cat-swa      38.13 22.13 20.99 14.53
        tiny-resnet18-adaad-swa    50.41 25.81 24.20 18.43
        tiny-resnet18-without-swa  54.01 28.21 25.13 20.00
    """,
    4: """
        cifar100-resnet18-akd2-wide-teacher   57.33 32.89 30.26 25.69
        cifar100-resnet18-rslad-wide-teacher  55.39 32.21 29.29 24.49
        cifar100-resnet18-iad-wide-teacher    55.51 31.44 28.54 24.41
        cifar100-resnet18-cat-wide-teacher    56.61 34.06 31.16 25.50
        cifar100-resnet18-adaad-wide-teacher  56.72 31.95 29.01 24.86
        cifar100-resnet18-wide-peer           57.63 34.33 30.17 26.99
    """,
    5: """
        cifar10-mobilenetv2-akd2   82.75 57.03 52.68 48.45
        cifar10-mobilenetv2-rslad  79.91 57.25 53.54 49.85
        cifar10-mobilenetv2-iad    80.15 57.97 53.23 49.10
        cifar10-mobilenetv2-cat    77.22 53.13 49.37 45.17
        cifar10-mobilenetv2-adaad  79.81 54.81 51.21 47.59
        cifar10-mobilenetv2        82.41 57.43 52.00 50.02
    """,
}

Figures = tuple[float, ...]


def paper_rows() -> dict[str, tuple[str, Figures]]:
    """The table (such as "Table 1") and the figures of each recipe that has them."""
    rows = {name: ("Table 1", figures) for name, figures in _table_1()}
    for number, text in OTHER_TABLES.items():
        rows |= {name: (f"Table {number}", figures) for name, figures in _lines(text)}
    return rows


def _table_1() -> Iterator[tuple[str, Figures]]:
    for data, text in TABLE_1.items():
        for method, figures in _lines(text):
            ending = "" if method == "peeraid" else f"-{method}"
            yield f"{data}-resnet18{ending}", figures[:4]
            yield f"{data}-wideresnet34x10{ending}", figures[4:]


def _lines(text: str) -> Iterator[tuple[str, Figures]]:
    for line in text.strip().splitlines():
        name, *figures = line.split()
        yield name, tuple(float(figure) for figure in figures)
