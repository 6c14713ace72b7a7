"""What a page owes to people who do not see it well, or do not use a mouse: as a browser has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axe_playwright_python.sync_playwright import Axe

if TYPE_CHECKING:
    from playwright.sync_api import Page

HARMFUL = ("serious", "critical")


def barriers(page: Page) -> list[str]:
    """What axe finds serious or critical on the page, a line for each element."""
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:160]}"
        for rule in Axe().run(page).response["violations"]
        if rule["impact"] in HARMFUL
        for node in rule["nodes"]
    ]


def faint(page: Page) -> list[str]:
    """The texts whose contrast is below WCAG's AA: 4.5, or 3 where they are large.

    Also in drawings (SVG), of which axe leaves some undecided. Texts over pictures are passed over:
    those lie on a shade of their own.
    """
    return page.evaluate(_FAINT)


def overflowing(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )


_FAINT = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const over = ([r, g, b, a], below) =>
    [r, g, b].map((value, n) => value * a / 255 + below[n] * (1 - a / 255));
  const light = (rgb) => {
    const [r, g, b] = rgb.map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      if (at.matches('.media, .stage')) return null;
      layers.push(rgba(getComputedStyle(at).backgroundColor));
      if (layers.at(-1)[3] === 255) break;
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility({opacityProperty: true})) continue;
    if (element.closest('.visually-hidden, .skip, noscript, option, title')) continue;
    const below = ground(element);
    if (!below) continue;
    const style = getComputedStyle(element);
    const color = element.ownerSVGElement ? style.fill : style.color;
    const [a, b] = [light(over(rgba(color), below)), light(below)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio >= (large ? 3 : 4.5)) continue;
    found.push(`${node.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return [...new Set(found)];
}"""
