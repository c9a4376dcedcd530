"""The page's look and its one small script, which only adds: the page reads the same without it.

Colours are named by meaning and defined twice, for light and dark. The script makes tables sortable and opens what is
folded before printing.
"""

CSS = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#16202c;--soft:#5b6877;--line:#dfe4ea;--grid:#e9edf1;
--ships:#0a6cd6;--ships-soft:#dcebfb;--kept:#7b8896;--refused:#c4462b;--refused-soft:#fbe7e2;--good:#1a7f4b;
--float:#d08a1e;--integer:#0a6cd6;--warn:#8a5a00;--warn-soft:#fff4d9;--warn-line:#efcf84;--zebra:#f9fafb}
@media(prefers-color-scheme:dark){:root{--page:#0f141a;--card:#171e26;--ink:#e6ebf1;--soft:#9aa7b5;--line:#2a3440;
--grid:#232c36;--ships:#5aa9ff;--ships-soft:#14304d;--kept:#8795a3;--refused:#ff8a6b;--refused-soft:#42211a;
--good:#5fcf92;--float:#e3aa4c;--integer:#5aa9ff;--warn:#ffd47a;--warn-soft:#33290f;--warn-line:#6a5320;
--zebra:#1a222b}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans",sans-serif;-webkit-print-color-adjust:exact;print-color-adjust:exact}
main,header,footer,nav{max-width:1220px;margin:0 auto;padding:0 20px}
header{padding-top:34px}
.eyebrow{color:var(--soft);font-size:12px;letter-spacing:.08em;text-transform:uppercase;margin:0}
h1{font-size:30px;line-height:1.2;margin:2px 0 10px;overflow-wrap:anywhere}
h1 small{color:var(--soft);font-weight:500;font-size:.72em}
h2{font-size:20px;margin:0 0 4px}
h3{font-size:15px;margin:22px 0 4px;overflow-wrap:anywhere}
p{margin:6px 0;max-width:92ch}
.lead{font-size:19px;line-height:1.45;margin:0 0 18px;overflow-wrap:anywhere}
.soft,figcaption,.key{color:var(--soft);font-size:13.5px}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:12px;margin:0 0 16px;padding:0;list-style:none}
.tiles li{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.tiles b{display:block;font-size:25px;line-height:1.25;font-weight:650;font-variant-numeric:tabular-nums}
.tiles span{display:block;color:var(--soft);font-size:13px}
.banner{background:var(--warn-soft);border:1px solid var(--warn-line);border-left-width:5px;border-radius:8px;
padding:9px 14px;margin:8px 0;max-width:none;overflow-wrap:anywhere}
.banner b{color:var(--warn)}
.banner.note{background:var(--card);border-color:var(--line)}
.banner.note b{color:var(--soft)}
nav{padding-top:10px;font-size:14px;display:flex;flex-wrap:wrap;gap:2px 18px}
a{color:var(--ships)}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:20px 22px;margin:18px 0}
.scroll{overflow-x:auto;margin:12px -22px 0;padding:0 22px}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{padding:7px 9px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600;white-space:nowrap;vertical-align:bottom}
tbody tr:last-child td{border-bottom:0}
td.n,th.n{text-align:right;white-space:nowrap}
td.none{color:var(--soft);font-style:italic;font-size:12.5px}
tr.ships td{background:var(--ships-soft)}
tr.base td{color:var(--soft)}
td small,td .why{display:block;color:var(--soft);font-size:12.5px;overflow-wrap:anywhere}
td.wide{min-width:220px}
td.mid{min-width:150px}
td.id{white-space:nowrap}
.name-cell{font-family:ui-monospace,"SF Mono",Menlo,Consolas,monospace;font-size:12.5px;min-width:150px;max-width:380px;
overflow-wrap:anywhere}
.clamp{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:2;overflow:hidden}
.clamp:hover{-webkit-line-clamp:unset}
.badge{display:inline-block;border-radius:99px;padding:1px 9px;font-size:12px;font-weight:600;white-space:nowrap;
border:1px solid var(--line);color:var(--soft);background:var(--card)}
.badge.ships{background:var(--ships);border-color:var(--ships);color:#fff}
.badge.refused,.badge.failed,.badge.interrupted{color:var(--refused);border-color:currentColor;
background:var(--refused-soft)}
.badge.float{color:var(--float);border-color:currentColor}
@media(prefers-color-scheme:dark){.badge.ships{color:#06182b}}
.bar{min-width:190px}
.bar>div{display:flex;align-items:center;gap:10px}
.bar b{font-weight:400;white-space:nowrap;flex:0 0 5.6em;text-align:right}
.track{flex:1;position:relative;height:9px;min-width:60px;background:var(--grid);border-radius:3px;
overflow:hidden}
.track i{position:absolute;top:0;bottom:0;border-radius:3px;background:var(--kept)}
.track i.integer{background:var(--integer)}.track i.float{background:var(--float)}
.track i.less{background:var(--refused)}.track i.more{background:var(--good)}
.track.middle::after{content:"";position:absolute;left:50%;top:0;bottom:0;width:1px;background:var(--soft)}
figure{margin:14px 0 0}
svg.plot{display:block;width:100%;height:auto;font:12.5px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
svg.narrow{display:none}
svg text{fill:var(--soft)}
svg .name{font-weight:600}
svg .label{fill:var(--ink);font-weight:600;paint-order:stroke;stroke:var(--card);stroke-width:3px;
stroke-linejoin:round}
.grid{stroke:var(--grid)}.axis{stroke:var(--kept);stroke-opacity:.6}
.lead-line,svg .lead{stroke:var(--soft);stroke-width:.8}
svg .limit{stroke:var(--refused);stroke-dasharray:5 4}
svg text.limit{stroke:none;fill:var(--refused)}
svg .out{fill:var(--refused);fill-opacity:.07}
svg .front{fill:none;stroke:var(--ships);stroke-opacity:.55;stroke-width:1.6}
.point{fill:var(--kept);fill-opacity:.3;stroke:var(--kept);stroke-width:1.1}
.point.onfront{stroke:var(--ink);stroke-width:1.6}
.point.ships{fill:var(--ships);fill-opacity:.8;stroke:var(--ships)}
.point.given{fill:var(--float);fill-opacity:.55;stroke:var(--float)}
.point.refused{fill:var(--refused);fill-opacity:.18;stroke:var(--refused);stroke-dasharray:2.5 2}
.point.off{stroke-dasharray:none;fill-opacity:.8}
.column{fill:var(--kept);fill-opacity:.45}.column.integer{fill:var(--integer);fill-opacity:.85}
.column.float{fill:var(--float);fill-opacity:1}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;margin:10px 0 0;padding:0;list-style:none}
.key svg{width:16px;height:16px;vertical-align:-3px;margin-right:6px}
.key rect{rx:2px}
details{margin-top:14px}
summary{cursor:pointer;color:var(--ships);font-weight:600;font-size:14px}
ul.plain{margin:10px 0 0;padding-left:20px}
ul.plain li{margin:3px 0;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:minmax(130px,max-content) 1fr;gap:6px 20px;margin:12px 0 0;font-size:14px}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
code{font-family:ui-monospace,"SF Mono",Menlo,Consolas,monospace;font-size:.92em;overflow-wrap:anywhere}
footer{color:var(--soft);font-size:13px;padding-bottom:40px}
th button{all:unset;cursor:pointer;font:inherit;color:inherit}
th button:focus-visible{outline:2px solid var(--ships);outline-offset:2px}
th button::after{content:"↕";opacity:.3;margin-left:2px}
th[aria-sort=ascending] button::after{content:"↑";opacity:1}
th[aria-sort=descending] button::after{content:"↓";opacity:1}
@media(max-width:760px){
main,header,footer,nav{padding-left:14px;padding-right:14px}
header{padding-top:22px}h1{font-size:25px}.lead{font-size:17px}
.tiles{grid-template-columns:1fr 1fr;gap:8px}.tiles li{padding:10px 12px}.tiles b{font-size:20px}
section{padding:16px 14px;border-radius:10px}.scroll{margin:10px -14px 0;padding:0 14px}
svg.wide{display:none}svg.narrow{display:block}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:8px}
.name-cell{max-width:180px}td.wide{min-width:150px}td.mid{min-width:140px}.bar{min-width:150px}.bar>div{gap:7px}
.bar b{flex-basis:4.6em}
th,td{padding:6px 7px}.name-cell{min-width:110px!important}}
@media print{
:root{color-scheme:light;--page:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;--grid:#ddd;--ships:#0a58b0;
--ships-soft:#e6f0fb;--kept:#666;--refused:#b03a20;--refused-soft:#fff;--good:#176b40;--float:#b87410;
--integer:#0a58b0;--warn:#6b4700;--warn-soft:#fff;--warn-line:#b99}
body{font-size:10.5pt}nav,summary,th button::after{display:none}
main,header,footer{max-width:none;padding-left:0;padding-right:0}
section{border:0;padding:0;margin:16px 0}.scroll{overflow:visible;margin:8px 0 0;padding:0}
table{font-size:7.6pt}th,td{padding:3px 4px;white-space:normal!important}
td.wide,td.mid,.bar,.name-cell,.track{min-width:0}.bar b{flex-basis:auto}.name-cell,td.none{font-size:7pt!important}
td small,td .why{font-size:7pt}
.clamp{display:block}tr,figure,.banner,.tiles{break-inside:avoid}h2,h3{break-after:avoid}
svg.wide{display:block}svg.narrow{display:none}}
"""

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const value = (row) => row.cells[column].dataset.v;
      const text = (row) => row.cells[column].textContent;
      const compare = (a, b) => {
        const one = value(a), two = value(b);
        if (one === "" || two === "") return (one === "") - (two === "");
        const order = one === undefined ? text(a).localeCompare(text(b)) : one - two;
        return down ? -order : order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
});
"""
