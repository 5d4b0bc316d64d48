"""The .env grammar: docker compose's rules as tables, and errors that show a line number only."""

from __future__ import annotations

import time

import pytest

from claude_proxy.dotenv import DotenvError, parse_dotenv

ENVIRON = {"SHELL_VAR": "shell", "EMPTY": "", "BOTH": "environment"}

VALUES = [
    ("unquoted", "V=VAL", "VAL"),
    ("blanks around", "  V = a b \t", "a b"),
    ("colon", "V: VAL", "VAL"),
    ("export", "export V=VAL", "VAL"),
    ("export with blanks", "export \t V=VAL", "VAL"),
    ("empty", "V=", ""),
    ("equals sign in the value", "V=a=b", "a=b"),
    ("comment after a blank", "V=VAL # comment", "VAL"),
    ("comment after a tab", "V=VAL\t# comment", "VAL"),
    ("no comment without a blank", "V=VAL# not", "VAL# not"),
    ("value that begins with a hash", "V=#5", "#5"),
    ("nothing but a comment", "V= # comment", ""),
    ("quote within", "V=it's", "it's"),
    ("backslash outside quotes", r"V=C:\new", r"C:\new"),
    ("double quotes", 'V="VAL"', "VAL"),
    ("double quotes keep blanks and hashes", 'V=" a # b "', " a # b "),
    ("comment after the quote", 'V="VAL" # comment', "VAL"),
    ("comment right after the quote", 'V="VAL"#comment', "VAL"),
    ("empty double quotes", 'V=""', ""),
    ("escapes", r'V="a\nb\rc\td\\e\"f"', 'a\nb\rc\td\\e"f'),
    ("escaped dollar", r'V="\$SHELL_VAR"', "$SHELL_VAR"),
    ("other escapes stay", r'V="\d"', r"\d"),
    ("backslash before n", r'V="\\n"', r"\n"),
    ("single quotes", "V='VAL'", "VAL"),
    ("single quotes are literal", r"V='$SHELL_VAR ${X:-y} $$ \n # \\'", r"$SHELL_VAR ${X:-y} $$ \n # \\"),
    ("escaped single quote", r"V='Let\'s go'", "Let's go"),
    ("lines in double quotes", 'V="a\nb"', "a\nb"),
    ("lines in single quotes", "V='a\nb'", "a\nb"),
    ("CRLF", "A=1\r\nV=x\r\n", "x"),
    ("CRLF after a quote", 'A="1"\r\nV="x"\r\n', "x"),
    ("CRLF in quotes", 'V="a\r\nb"', "a\nb"),
    ("byte order mark", "\ufeffV=x", "x"),
    ("the last one counts", "V=1\nV=2", "2"),
    ("comments and blank lines", "# c\n\n  # V=0\n\t\nV=1\n", "1"),
    ("not ASCII", "V=größe", "größe"),
    ("reference", "V=a$SHELL_VAR-b", "ashell-b"),
    ("braces", "V=a${SHELL_VAR}b", "ashellb"),
    ("reference in double quotes", 'V="<$SHELL_VAR>"', "<shell>"),
    ("earlier line", "A=1\nV=${A}2", "12"),
    ("itself", "V=1\nV=${V}2", "12"),
    ("later line is not seen", "V=[$A]\nA=1", "[]"),
    ("environment goes before lines", "BOTH=file\nV=$BOTH", "environment"),
    ("unset is empty", "V=[$NOPE${NOPE}]", "[]"),
    ("two dollars", "V=$$SHELL_VAR $${A}", "$SHELL_VAR ${A}"),
    ("two dollars in double quotes", 'V="$$SHELL_VAR"', "$SHELL_VAR"),
    ("dollar before anything else", "V=pa$5word$ $", "pa$5word$ $"),
    ("brace without a reference", 'V={"a":1}', '{"a":1}'),
    ("default, unset", "V=${NOPE:-d e}", "d e"),
    ("default, empty", "V=${EMPTY:-d}", "d"),
    ("default, set", "V=${SHELL_VAR:-d}", "shell"),
    ("default without colon, unset", "V=${NOPE-d}", "d"),
    ("default without colon, empty", "V=[${EMPTY-d}]", "[]"),
    ("empty default", "V=[${NOPE:-}]", "[]"),
    ("required, set", "V=${SHELL_VAR:?e}", "shell"),
    ("required without colon, empty", "V=[${EMPTY?e}]", "[]"),
    ("replacement, set", "V=${SHELL_VAR:+r}", "r"),
    ("replacement, empty", "V=[${EMPTY:+r}]", "[]"),
    ("replacement without colon, empty", "V=${EMPTY+r}", "r"),
    ("replacement without colon, unset", "V=[${NOPE+r}]", "[]"),
    ("nested", "V=${NOPE:-${EMPTY:-${SHELL_VAR}}}", "shell"),
    ("nested with text around", "V=<${NOPE:-a${NOPE-b$SHELL_VAR}c}>", "<abshellc>"),
    ("operator in the default", "V=${NOPE:-a:-b?c}", "a:-b?c"),
    ("URL as default", "V=${NOPE:-http://h:1/v1}", "http://h:1/v1"),
    ("escape in a default", r'V="${NOPE:-a\"b}"', 'a"b'),
    ("a default not used may lack what it requires", "V=${SHELL_VAR:-${NOPE:?e}}", "shell"),
    ("a replaced value is not read again", "A='$SHELL_VAR'\nV=$A", "$SHELL_VAR"),
]


@pytest.mark.parametrize("name,text,expected", VALUES, ids=[row[0] for row in VALUES])
def test_values(name, text, expected):
    assert parse_dotenv(text, ENVIRON)["V"] == expected


@pytest.mark.parametrize("name,text,expected", VALUES, ids=[row[0] for row in VALUES])
def test_the_line_after_is_read(name, text, expected):
    assert parse_dotenv(text + "\nLAST=1", ENVIRON)["LAST"] == "1"


@pytest.mark.parametrize("text", ["", "\n\n", "# only\n#comments", "\ufeff", " \t"])
def test_nothing_set(text):
    assert parse_dotenv(text, ENVIRON) == {}


def test_environment_is_not_copied_nor_hidden():
    assert parse_dotenv("BOTH=file\nB_2=x", ENVIRON) == {"BOTH": "file", "B_2": "x"}


MISTAKES = [
    ("no equals sign", "A=1\nsk-canary", 2),
    ("bare name", "CANARY", 1),
    ("no name", "=canary", 1),
    ("name with a hyphen", "A-B=canary", 1),
    ("name that begins with a digit", "1A=canary", 1),
    ("blank within the name", "A canary=1", 1),
    ("double quote not closed", "A=1\n\nB=\"canary\nC=2\n", 3),
    ("single quote not closed", "A='canary", 1),
    ("only an escaped quote", 'A="canary\\"', 1),
    ("text after the quote", "A='x' canary", 1),
    ("text after lines in quotes", "A='x\ny'canary\nB=1", 2),
    ("line after lines in quotes", "A='x\ny'\ncanary", 3),
    ("line after CRLF", "A=1\r\n# c\r\ncanary\r\n", 3),
    ("brace not closed", "A=${canary:-x", 1),
    ("inner brace not closed", "A=${B:-${canary:-x}", 1),
    ("brace closed behind the comment", "A=${B:-x #canary}", 1),
    ("no name in braces", "A=${}canary", 1),
    ("digit in braces", "A=${1canary}", 1),
    ("unknown operator", "A=${canary/x/y}", 1),
    ("required, unset", "B=1\nA=${NOPE:?canary}", 2),
    ("required, empty", "A=${EMPTY:?canary}", 1),
    ("required without colon, unset", "A=${NOPE?canary}", 1),
    ("required in a default that is used", "A=${NOPE:-${NOPE:?canary}}", 1),
]


@pytest.mark.parametrize("name,text,line", MISTAKES, ids=[row[0] for row in MISTAKES])
def test_mistakes_name_the_line_and_not_the_text(name, text, line):
    with pytest.raises(DotenvError) as caught:
        parse_dotenv(text, ENVIRON)
    assert caught.value.line == line
    assert str(caught.value).startswith(f"line {line}: ")
    assert "canary" not in str(caught.value).lower()


LONG = [
    ("braces", lambda n: "A=" + "${B:-" * n + "x" + "}" * n),
    ("braces not closed", lambda n: "A=" + "${B:-" * n),
    ("dollars", lambda n: "A=" + "$" * n),
    ("quote not closed", lambda n: 'A="' + "\\" * n + "a" * n),
    ("blanks", lambda n: "A=" + " " * n + "x" + " " * n),
    ("blanks before nothing", lambda n: "export" + " " * n + "\nA=1"),
    ("hashes", lambda n: "A=1" + "#" * n),
    ("name", lambda n: "A" * n),
    ("name in braces", lambda n: "A=${" + "B" * n),
    ("lines", lambda n: "A=1\n" * (n // 4)),
]


@pytest.mark.parametrize("name,make", LONG, ids=[row[0] for row in LONG])
def test_time_grows_with_the_length(name, make):
    start = time.process_time()
    try:
        parse_dotenv(make(100_000), {})
    except DotenvError:
        pass
    assert time.process_time() - start < 3
