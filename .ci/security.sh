#!/usr/bin/env bash
# What this project rests on, and what it must not hold:
#
#   .ci/security.sh                   all of it; the bill of materials goes to .kpayd/sbom.json
#   .ci/security.sh secrets           no secret in a tracked file
#   .ci/security.sh baseline          write down what `secrets` finds now as public test values: look at each first
#   .ci/security.sh audit [OPTION]... no known vulnerability in what production runs; options go to pip-audit
#   .ci/security.sh sbom FILE         the bill of materials (CycloneDX) of what production runs
#
# Static analysis is ./dev check: ruff's S rules (flake8-bandit's) and mypy --strict. VENV names another environment.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin
[ -x "$bin/python" ] || { echo "security: there is no $bin: run ./dev kpayd --help" >&2; exit 2; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The baseline itself holds hashes, which look like secrets.
tracked() { git ls-files -z --cached -- . ':!.secrets.baseline'; }

secrets() {
    # A copy, since the scanner writes the lines that have moved back into its baseline; 3 tells of nothing else.
    cp .secrets.baseline "$scratch/baseline"
    # shellcheck disable=SC2016 # the inner shell's words
    if tracked | xargs -0 sh -c '"$0" "$@" || [ $? = 3 ]' "$bin/detect-secrets-hook" --no-verify --baseline "$scratch/baseline"; then
        echo "secrets: none in $(tracked | tr -cd '\0' | wc -c) files beyond the public test values of the baseline"
    else
        echo "secrets: found some. Take them out and change them where they are used, they are burnt;" \
            "for a value that opens nothing: .ci/security.sh baseline" >&2
        return 1
    fi
}

baseline() { tracked | xargs -0 "$bin/detect-secrets" scan --no-verify >"$scratch/new" && cp "$scratch/new" .secrets.baseline; }

audit() {
    "$bin/pip-audit" --requirement requirements/run.txt --require-hashes --disable-pip --progress-spinner off \
        --format json --output "$scratch/audit.json" "$@" 2>"$scratch/audit.txt" || true
    "$bin/python" - "$scratch/audit.json" "$scratch/audit.txt" <<'PYTHON'
import json
import sys
from pathlib import Path

report, words = map(Path, sys.argv[1:])
known = json.loads(report.read_text())["dependencies"] if report.exists() and report.stat().st_size else []
audited = [each for each in known if "vulns" in each]
found = [(each, vuln) for each in audited for vuln in each["vulns"]]
for each, vuln in found:
    fixed = ", ".join(vuln["fix_versions"]) or "none yet"
    print(f"audit: {each['name']} {each['version']} has {vuln['id']}; fixed in {fixed}", file=sys.stderr)
if not audited or len(audited) < len(known):
    reasons = [each["skip_reason"] for each in known if "skip_reason" in each] + words.read_text().split("\n")[-2:]
    why = next(filter(None, reasons), "no word why")[:300]
    left = "NOTHING WAS AUDITED" if not audited else f"ONLY {len(audited)} OF {len(known)} PACKAGES WERE AUDITED"
    print(f"\n!!! audit: {left}: the vulnerability service cannot be asked from here ({why})\n", file=sys.stderr)
elif not found:
    print(f"audit: {len(audited)} packages, no known vulnerability")
sys.exit(bool(found))
PYTHON
}

sbom() {
    mkdir -p "$(dirname "$1")"
    "$bin/cyclonedx-py" requirements requirements/run.txt --pyproject pyproject.toml --output-reproducible \
        --output-format JSON --output-file "$1" 2>"$scratch/sbom.txt" || { cat "$scratch/sbom.txt" >&2; return 1; }
    echo "sbom: $1, $(grep -c '"bom-ref": "requirements-' "$1") packages"
}

case ${1:-all} in
    all)
        failed=
        secrets || failed=1
        audit || failed=1
        sbom .kpayd/sbom.json || failed=1
        [ -z "$failed" ]
        ;;
    secrets | baseline) "$1" ;;
    audit) shift && audit "$@" ;;
    sbom) sbom "${2:?name a file}" ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
