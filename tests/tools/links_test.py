# SPDX-License-Identifier: Apache-2.0
"""Every relative link of README, CONTRIBUTING and docs leads to a file of the repository."""
import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)(?:#[^)]*)?\)")


class Links(unittest.TestCase):
    def test_lead_somewhere(self):
        pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
        self.assertTrue(pages)
        for page in pages:
            for link in LINK.findall(page.read_text()):
                if "://" not in link:
                    self.assertTrue((page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}")


if __name__ == "__main__":
    unittest.main()
