# SPDX-License-Identifier: Apache-2.0
"""How a report looks: one style sheet and the page around the sections. No framework, no script, no
network.

"""

CSS = """
:root {
  color-scheme: light dark;
  --page: #fafaf8; --card: #ffffff; --ink: #17191e; --soft: #646a73; --faint: #9aa0a8; --rule: #e7e6e1;
  --accent: #3f51d8; --accent-soft: #b9c2f7; --wash: #eef0fd; --bad: #c8551b; --other: #d39a2d; --grey:
  #a3a8b0;
  --track: #efeeea; --cell: #f1f0ec; --on-accent: #ffffff;
}
@media (prefers-color-scheme: dark) { :root {
  --page: #0f1115; --card: #171a20; --ink: #eceef2; --soft: #a0a6b0; --faint: #6d737e; --rule: #272b33;
  --accent: #8fa0ff; --accent-soft: #43508f; --wash: #1d2238; --bad: #f08a52; --other: #e2b355; --grey:
  #767d88;
  --track: #232730; --cell: #20242c; --on-accent: #0f1115;
} }
* { box-sizing: border-box; margin: 0; }
body { background: var(--page); color: var(--ink); line-height: 1.5; -webkit-font-smoothing: antialiased;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 56px 28px 72px; }
header .mark { font-size: 12px; font-weight: 600; letter-spacing: .14em; text-transform: uppercase;
  color: var(--accent); }
h1 { font-size: clamp(28px, 4.4vw, 42px); line-height: 1.12; letter-spacing: -.022em; font-weight: 680;
  margin: 8px 0 10px; overflow-wrap: anywhere; }
header p { color: var(--soft); max-width: 66ch; }
section { margin-top: 54px; }
h2 { font-size: 20px; letter-spacing: -.012em; font-weight: 640; }
h2 + p { color: var(--soft); max-width: 72ch; margin-top: 4px; }
h3 { font-size: 13px; font-weight: 600; color: var(--soft); }
.num { font-variant-numeric: tabular-nums; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 14px; padding: 20px 22px; }
.grid { display: grid; gap: 16px; margin-top: 18px; }
.three { grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); }
.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.headline { margin-top: 34px; }
.big { font-size: 58px; line-height: 1; font-weight: 700; letter-spacing: -.04em; margin: 10px 0 12px;
  font-variant-numeric: tabular-nums; }
.big small { font-size: .48em; font-weight: 600; letter-spacing: 0; margin-left: 3px; color: var(--soft); }
.policy .big, .policy .big small { color: var(--accent); }
.note { font-size: 13px; color: var(--soft); margin-top: 8px; }
.scale, .bar { position: relative; background: var(--track); border-radius: 3px; }
.scale { height: 6px; }
.scale i, .bar i { position: absolute; top: 0; bottom: 0; border-radius: 3px; }
.scale i { background: var(--tone); opacity: .32; min-width: 3px; }
.scale b { position: absolute; top: -3px; width: 4px; height: 12px; margin-left: -2px; border-radius: 2px;
  background: var(--tone); }
.policy { --tone: var(--accent); } .random { --tone: var(--grey); } .swapped { --tone: var(--other); }
.expert { --tone: var(--soft); }
.tasks { display: grid; gap: 22px; margin-top: 18px; }
.task { display: grid; grid-template-columns: 150px 1fr; gap: 4px 18px; align-items: start; }
.task strong { font-weight: 620; padding-top: 0; line-height: 20px; overflow-wrap: anywhere; }
.task strong span { display: block; font-weight: 400; font-size: 12.5px; color: var(--soft); }
.row { display: grid; grid-template-columns: 1fr 128px; gap: 12px; align-items: center; height: 20px;
  font-size: 12.5px; color: var(--soft); }
.row b { color: var(--ink); font-weight: 600; display: inline-block; min-width: 34px; text-align: right;
  margin-right: 4px; }
.bar { height: 12px; } .bar i { left: 0; background: var(--tone); }
.bar u { position: absolute; top: 50%; height: 1.5px; margin-top: -.75px; background: var(--ink); opacity:
  .75; }
.bar u::before, .bar u::after { content: ""; position: absolute; top: -3px; width: 1.5px; height: 7.5px;
  background: var(--ink); }
.bar u::before { left: 0; } .bar u::after { right: 0; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 14px; font-size: 13px; color:
  var(--soft); }
.legend span { display: inline-flex; align-items: center; gap: 7px; }
.legend i { width: 12px; height: 12px; border-radius: 3px; background: var(--tone); display: inline-block; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--soft);
  font-variant-numeric: tabular-nums; }
svg .axis { stroke: var(--rule); stroke-width: 1; }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.chart h3 { display: flex; justify-content: space-between; gap: 12px; margin-bottom: 10px; color:
  var(--ink); }
.chart h3 span { font-weight: 400; color: var(--soft); }
.videos { grid-template-columns: repeat(4, minmax(0, 1fr)); }
figure { background: var(--card); border: 1px solid var(--rule); border-radius: 14px; overflow: hidden; }
figure video, figure img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover;
  background: var(--track); }
figcaption { padding: 10px 14px 13px; font-size: 13.5px; line-height: 1.35; }
figcaption span { display: block; margin-top: 3px; font-size: 12px; color: var(--soft); }
.badge { display: inline-flex; align-items: center; gap: 6px; font-size: 12px; font-weight: 600;
  margin-bottom: 3px; }
.badge::before { content: ""; width: 7px; height: 7px; border-radius: 50%; background: currentColor; }
.success { color: var(--accent); } .failure { color: var(--bad); }
.denoise { grid-template-columns: 230px minmax(0, 1fr); align-items: start; }
.panels { display: grid; gap: 20px 28px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px),
  1fr)); }
.told { font-size: 17px; line-height: 1.3; letter-spacing: -.01em; font-weight: 600; }
.token text { font: 600 10.5px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; text-anchor:
  middle; }
.token .name, .token .time { font: 11px system-ui, sans-serif; } .token .name { text-anchor: end; }
.chunk { display: grid; gap: 14px 20px; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); }
.expects { grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); align-items: start; }
.foresight { padding: 12px 0; border-top: 1px solid var(--rule); }
.foresight .told { font-size: 14px; margin-top: 8px; }
.foresight .told span { display: block; font-weight: 400; font-size: 12px; color: var(--soft); }
.trio { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 8px; margin-top: 6px; }
.trio figure { border-radius: 8px; } .trio figcaption { padding: 4px 8px 5px; font-size: 12px; color: var(--soft); }
.trio img { image-rendering: pixelated; }
.facts { columns: 3 300px; column-gap: 16px; margin-top: 18px; }
.facts .card { break-inside: avoid; margin-bottom: 16px; }
table { width: 100%; border-collapse: collapse; font-size: 13.5px; margin-top: 6px; }
td { padding: 5px 0; border-top: 1px solid var(--rule); vertical-align: top; overflow-wrap: anywhere; }
tr:first-child td { border-top: 0; }
td:first-child { color: var(--soft); padding-right: 16px; width: 42%; }
footer { margin-top: 56px; padding-top: 16px; border-top: 1px solid var(--rule); font-size: 13px;
  color: var(--faint); }
@media (max-width: 720px) {
  main { padding: 32px 16px 48px; } section { margin-top: 42px; }
  .task, .denoise { grid-template-columns: minmax(0, 1fr); }
  .card { padding: 16px; } .row { grid-template-columns: 1fr 112px; }
  .denoise figure { max-width: 260px; } .videos { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
@media print { section { break-inside: avoid; } }
"""


def page(title: str, body: str) -> str:
    """The whole HTML file. `title` and `body` are HTML already (escaped by whoever made them)."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{CSS}</style></head>\n<body><main>{body}</main></body></html>\n"
    )
