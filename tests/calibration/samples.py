"""Short texts of many kinds, the same in every run: `samples.json` has their true counts.

Sentences are our own; code, tables and logs are generated. `calibrate.py samples` counts them anew.
"""

from __future__ import annotations

import base64
import json
import random

SUBJECTS = "order patient invoice session packet report schedule ticket sensor account".split()
VERBS = "load save merge check send count parse render close update".split()
FIELDS = "id name created_at total isActive lastLogin owner status retryCount unit_price".split()
PLACES = "src tests docs lib scripts server client common".split()
MESSAGES = (
    "connection refused by the upstream, trying again in 2 s",
    "cache miss for key session:48213, loading from the database",
    "request finished in 184 ms with status 200",
    "the queue holds 1207 entries; oldest is 93 s old",
    "permission denied: cannot open the file for writing",
)
# One short story in many languages.
LANGUAGES = {
    "english": "The library closes at eight, but the reading room stays open until ten on weekdays. Nobody told the new students, so most of them went home early. Yesterday we wrote a notice and hung it next to the lift. Perhaps somebody will read it before the examinations begin.",
    "german": "Die Bibliothek schließt um acht, der Lesesaal bleibt werktags jedoch bis zehn geöffnet. Den neuen Studierenden hatte das niemand gesagt, weshalb die meisten früh nach Hause gingen. Gestern schrieben wir eine Bekanntmachung und hängten sie neben den Aufzug. Vielleicht liest sie jemand, bevor die Prüfungszeit beginnt.",
    "french": "La bibliothèque ferme à huit heures, mais la salle de lecture reste ouverte jusqu'à dix heures en semaine. Personne ne l'avait dit aux nouveaux étudiants, si bien que la plupart rentraient tôt. Hier, nous avons rédigé une affiche et l'avons accrochée près de l'ascenseur. Quelqu'un la lira peut-être avant les examens.",
    "spanish": "La biblioteca cierra a las ocho, pero la sala de lectura sigue abierta hasta las diez entre semana. Nadie se lo había dicho a los nuevos estudiantes, así que la mayoría se iba temprano a casa. Ayer escribimos un aviso y lo colgamos junto al ascensor. Quizá alguien lo lea antes de que empiecen los exámenes.",
    "italian": "La biblioteca chiude alle otto, ma la sala di lettura resta aperta fino alle dieci nei giorni feriali. Nessuno lo aveva detto ai nuovi studenti, perciò quasi tutti tornavano a casa presto. Ieri abbiamo scritto un avviso e l'abbiamo appeso accanto all'ascensore. Forse qualcuno lo leggerà prima degli esami.",
    "portuguese": "A biblioteca fecha às oito, mas a sala de leitura fica aberta até às dez nos dias úteis. Ninguém avisou os novos estudantes, por isso a maioria ia cedo para casa. Ontem escrevemos um aviso e o penduramos ao lado do elevador. Talvez alguém o leia antes de começarem as provas.",
    "dutch": "De bibliotheek sluit om acht uur, maar de leeszaal blijft op werkdagen tot tien uur open. Niemand had het de nieuwe studenten verteld, dus gingen de meesten vroeg naar huis. Gisteren schreven we een bericht en hingen het naast de lift. Misschien leest iemand het voordat de tentamens beginnen.",
    "polish": "Biblioteka zamyka się o ósmej, ale czytelnia jest w dni robocze otwarta do dziesiątej. Nikt nie powiedział o tym nowym studentom, więc większość wcześnie wracała do domu. Wczoraj napisaliśmy ogłoszenie i powiesiliśmy je obok windy. Może ktoś je przeczyta, zanim zaczną się egzaminy.",
    "czech": "Knihovna zavírá v osm, ale čítárna zůstává ve všední dny otevřená do deseti. Novým studentům to nikdo neřekl, a tak většina z nich odcházela domů brzy. Včera jsme napsali oznámení a pověsili ho vedle výtahu. Snad si ho někdo přečte, než začnou zkoušky.",
    "turkish": "Kütüphane sekizde kapanıyor, ama okuma salonu hafta içi ona kadar açık kalıyor. Bunu yeni öğrencilere kimse söylememişti, bu yüzden çoğu eve erken gidiyordu. Dün bir duyuru yazıp asansörün yanına astık. Belki sınavlar başlamadan önce birisi okur.",
    "swedish": "Biblioteket stänger klockan åtta, men läsesalen är öppen till tio på vardagar. Ingen hade berättat det för de nya studenterna, så de flesta gick hem tidigt. I går skrev vi ett anslag och hängde upp det bredvid hissen. Kanske läser någon det innan tentorna börjar.",
    "vietnamese": "Thư viện đóng cửa lúc tám giờ, nhưng phòng đọc mở đến mười giờ vào các ngày trong tuần. Không ai nói cho sinh viên mới biết, nên phần lớn về nhà sớm. Hôm qua chúng tôi viết một thông báo và treo cạnh thang máy. Có lẽ ai đó sẽ đọc trước khi kỳ thi bắt đầu.",
    "indonesian": "Perpustakaan tutup pukul delapan, tetapi ruang baca tetap buka sampai pukul sepuluh pada hari kerja. Tidak ada yang memberi tahu para mahasiswa baru, jadi kebanyakan dari mereka pulang lebih awal. Kemarin kami menulis pengumuman dan menggantungnya di dekat lift.",
    "russian": "Библиотека закрывается в восемь, но читальный зал по будням открыт до десяти. Новым студентам никто об этом не сказал, поэтому большинство рано уходило домой. Вчера мы написали объявление и повесили его возле лифта. Может быть, кто-нибудь прочтёт его до начала экзаменов.",
    "ukrainian": "Бібліотека зачиняється о восьмій, але читальна зала в будні відкрита до десятої. Новим студентам ніхто про це не сказав, тому більшість рано йшла додому. Учора ми написали оголошення й повісили його біля ліфта. Може, хтось прочитає його до початку іспитів.",
    "greek": "Η βιβλιοθήκη κλείνει στις οκτώ, αλλά το αναγνωστήριο μένει ανοιχτό ως τις δέκα τις καθημερινές. Κανείς δεν το είπε στους νέους φοιτητές, γι' αυτό οι περισσότεροι έφευγαν νωρίς. Χθες γράψαμε μια ανακοίνωση και την κρεμάσαμε δίπλα στο ασανσέρ.",
    "arabic": "تغلق المكتبة أبوابها في الثامنة، لكن قاعة القراءة تبقى مفتوحة حتى العاشرة في أيام الأسبوع. لم يخبر أحد الطلاب الجدد بذلك، فكان معظمهم يعود إلى البيت مبكرا. كتبنا أمس إعلانا وعلقناه بجانب المصعد. ربما يقرؤه أحد قبل أن تبدأ الامتحانات.",
    "hebrew": "הספרייה נסגרת בשמונה, אבל אולם הקריאה נשאר פתוח עד עשר בימי חול. איש לא סיפר על כך לסטודנטים החדשים, ולכן רובם הלכו הביתה מוקדם. אתמול כתבנו הודעה ותלינו אותה ליד המעלית.",
    "hindi": "पुस्तकालय आठ बजे बंद होता है, लेकिन वाचनालय कामकाजी दिनों में दस बजे तक खुला रहता है। नए छात्रों को यह किसी ने नहीं बताया, इसलिए अधिकतर जल्दी घर चले जाते थे। कल हमने एक सूचना लिखी और उसे लिफ्ट के पास टाँग दिया।",
    "thai": "ห้องสมุดปิดตอนสองทุ่ม แต่ห้องอ่านหนังสือเปิดถึงสี่ทุ่มในวันธรรมดา ไม่มีใครบอกนักศึกษาใหม่ ส่วนใหญ่จึงกลับบ้านเร็ว เมื่อวานเราเขียนประกาศแล้วแขวนไว้ข้างลิฟต์",
    "chinese": "图书馆八点关门，但阅览室工作日开放到十点。没有人告诉新来的学生，所以他们大多很早就回家了。昨天我们写了一张通知，贴在电梯旁边。也许在考试开始之前会有人看到它。",
    "traditional chinese": "圖書館八點關門，但閱覽室平日開放到十點。沒有人告訴新來的學生，所以他們大多很早就回家了。昨天我們寫了一張通知，貼在電梯旁邊。也許在考試開始之前會有人看到它。",
    "japanese": "図書館は八時に閉まりますが、閲覧室は平日十時まで開いています。新しい学生には誰も伝えていなかったので、ほとんどの人が早く帰っていました。昨日、私たちはお知らせを書いて、エレベーターの横に貼りました。試験が始まる前に誰かが読んでくれるかもしれません。",
    "korean": "도서관은 여덟 시에 문을 닫지만 열람실은 평일에 열 시까지 열려 있습니다. 새로 온 학생들에게 아무도 알려 주지 않아서 대부분 일찍 집에 돌아갔습니다. 어제 우리는 안내문을 써서 승강기 옆에 붙였습니다.",
}


def python_code(chosen: random.Random) -> str:
    parts = [
        "from __future__ import annotations\n\nimport logging\n\nlog = logging.getLogger(__name__)\n"
    ]
    for _ in range(12):
        verb, noun, field = chosen.choice(VERBS), chosen.choice(SUBJECTS), chosen.choice(FIELDS)
        parts.append(f'''

def {verb}_{noun}({noun}s: list[dict], limit: int = {chosen.randint(1, 500)}) -> int:
    """{verb.title()} every {noun} below the limit and tell how many there were."""
    found = [{noun} for {noun} in {noun}s if {noun}["{field}"] is not None]
    if len(found) > limit:
        raise ValueError(f"too many: {{len(found)}} > {{limit}}")
    for {noun} in found:
        self._{verb}({noun}, key="{field}")
        log.debug("{verb} %s", {noun}.get("{field}"))
    return len(found)
''')
    return "".join(parts)


def javascript_code(chosen: random.Random) -> str:
    parts = ['import { readFile } from "node:fs/promises";\n']
    for _ in range(12):
        verb, noun, field = (
            chosen.choice(VERBS),
            chosen.choice(SUBJECTS).title(),
            chosen.choice(FIELDS),
        )
        parts.append(f"""
export async function {verb}{noun}(path, {{ timeoutMs = {chosen.randint(1, 90)}00 }} = {{}}) {{
  const rows = JSON.parse(await readFile(path, "utf8"));
  const kept = rows.filter((row) => row.{field} !== undefined && !row.isDeleted);
  if (kept.length === 0) {{
    throw new Error(`nothing to {verb} in ${{path}}`);
  }}
  return kept.map(({{ id, {field}: value }}) => ({{ id, value, timeoutMs }}));
}}
""")
    return "".join(parts)


def c_code(chosen: random.Random) -> str:
    parts = ["#include <stdio.h>\n#include <string.h>\n\n#define MAX_ROWS 4096\n"]
    for _ in range(12):
        verb, noun = chosen.choice(VERBS), chosen.choice(SUBJECTS)
        parts.append(f"""
static int {noun}_{verb}(struct {noun} *self, const char *text, size_t length)
{{
\tif (self == NULL || length >= MAX_ROWS)
\t\treturn -EINVAL;
\tfor (size_t i = 0; i < length; i++)
\t\tself->rows[i & 0x{chosen.randint(15, 255):02X}] ^= (unsigned char)text[i];
\treturn {noun}_flush(self, {chosen.randint(0, 64)});
}}
""")
    return "".join(parts)


def records(chosen: random.Random, many: int = 25) -> list:
    return [
        {
            "id": chosen.randint(1000, 99999),
            "name": f"{chosen.choice(SUBJECTS)}-{chosen.choice(VERBS)}",
            "created_at": f"2025-{chosen.randint(1, 12):02}-{chosen.randint(1, 28):02}T0{chosen.randint(0, 9)}:15:30Z",
            "url": f"https://api.example.org/v2/{chosen.choice(SUBJECTS)}s/{chosen.randint(1, 9999)}?page=1",
            "isActive": chosen.random() < 0.5,
            "tags": chosen.sample(FIELDS, 3),
            "score": round(chosen.random(), 4),
        }
        for _ in range(many)
    ]


def tool_schema(chosen: random.Random) -> dict:
    verb, noun = chosen.choice(VERBS), chosen.choice(SUBJECTS)
    properties = {
        field: {
            "type": chosen.choice(("string", "number", "boolean")),
            "description": f"The {field} of the {noun} to {verb}; leave it out to use the default.",
        }
        for field in chosen.sample(FIELDS, 5)
    }
    return {
        "name": f"{verb}_{noun}",
        "description": f"{verb.title()}s one {noun}. Use this instead of running a command yourself: the "
        f"result is checked, and no {noun} is changed without permission.\n\nReturns the {noun} as JSON.",
        "input_schema": {
            "type": "object",
            "properties": properties,
            "required": sorted(properties)[:2],
            "additionalProperties": False,
            "$schema": "http://json-schema.org/draft-07/schema#",
        },
    }


def numbered(text: str) -> str:
    return "\n".join(f"{number:6}\t{line}" for number, line in enumerate(text.splitlines(), 1))


def diff(chosen: random.Random, text: str) -> str:
    lines = [
        "diff --git a/src/rows.py b/src/rows.py",
        "index 3f2a91c..b7710de 100644",
        "--- a/src/rows.py",
        "+++ b/src/rows.py",
    ]
    for number, line in enumerate(text.splitlines()):
        if number % 12 == 0:
            lines.append(f"@@ -{number + 1},12 +{number + 1},13 @@")
        lines.append(chosen.choice("  +-") + line)
    return "\n".join(lines)


def log_lines(chosen: random.Random) -> str:
    return "\n".join(
        f"2025-11-{chosen.randint(1, 28):02} {chosen.randint(0, 23):02}:{chosen.randint(0, 59):02}:07,{chosen.randint(0, 999):03} "
        f"{chosen.choice(('INFO', 'DEBUG', 'WARNING', 'ERROR'))} [{chosen.choice(SUBJECTS)}.{chosen.choice(VERBS)}] {chosen.choice(MESSAGES)}"
        for _ in range(60)
    )


def path_of(chosen: random.Random) -> str:
    return f"{chosen.choice(PLACES)}/{chosen.choice(SUBJECTS)}s/{chosen.choice(VERBS)}_{chosen.choice(FIELDS)}.py"


def listing(chosen: random.Random) -> str:
    return "\n".join(
        f"-rw-r--r-- 1 app app {chosen.randint(90, 99999):7} Nov {chosen.randint(1, 28):2} 06:{chosen.randint(10, 59)} {path_of(chosen)}"
        for _ in range(60)
    )


def matches(chosen: random.Random, text: str) -> str:
    return "\n".join(
        f"{path_of(chosen)}:{number}:{line}"
        for number, line in enumerate(text.splitlines(), 1)
        if line
    )


def markdown(chosen: random.Random) -> str:
    rows = "\n".join(
        f"| `{field}` | {chosen.choice(VERBS)} | {chosen.randint(1, 99)} % |" for field in FIELDS
    )
    items = "\n".join(
        f"- **{noun.title()}**: see [{noun}](docs/{noun}.md), then `make {verb}`."
        for noun, verb in zip(SUBJECTS, VERBS)
    )
    return f"# How to read this\n\n{LANGUAGES['english']}\n\n## Fields\n\n| Field | Use | Share |\n|---|---|---:|\n{rows}\n\n## Steps\n\n{items}\n"


def boxes(chosen: random.Random) -> str:
    names = [path_of(chosen).rpartition("/")[2] for _ in range(30)]
    return "\n".join(
        f"│   ├── {name}" if number % 4 else f"├── {name} ✓" for number, name in enumerate(names)
    )


def emoji(chosen: random.Random) -> str:
    return "\n".join(
        f"{chosen.choice('🚀🎉✅❌🔥📝🐛💡')} {chosen.choice(MESSAGES)} {chosen.choice('👍😀🙈🤖')}"
        for _ in range(20)
    )


def blob(chosen: random.Random, size: int = 1500) -> bytes:
    return bytes(chosen.randrange(256) for _ in range(size))


def samples() -> dict:
    """Every text by its name."""
    chosen = random.Random(2025)
    code, rows = python_code(chosen), records(chosen)
    texts = {
        "python": code,
        "javascript": javascript_code(chosen),
        "c": c_code(chosen),
        "numbered": numbered(code),
        "diff": diff(chosen, code),
        "grep": matches(chosen, code),
        "json": json.dumps(rows, indent=2),
        "json compact": json.dumps(rows, separators=(",", ":")),
        "tools": json.dumps([tool_schema(chosen) for _ in range(8)], separators=(",", ":")),
        "log": log_lines(chosen),
        "ls": listing(chosen),
        "markdown": markdown(chosen),
        "boxes": boxes(chosen),
        "emoji": emoji(chosen),
        "csv": "\n".join(
            ",".join(str(chosen.randint(0, 99999)) for _ in range(8)) for _ in range(60)
        ),
        "base64": base64.b64encode(blob(chosen)).decode(),
        "hex": blob(chosen).hex(),
    }
    return {**texts, **LANGUAGES}
