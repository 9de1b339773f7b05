//! A table as aligned text and as Markdown.

/// Rows of cells; the first cell of each names it.
#[derive(Debug)]
pub(crate) struct Table {
    head: Vec<String>,
    rows: Vec<(Vec<String>, bool)>,
}

impl Table {
    pub(crate) fn new(head: Vec<String>) -> Self {
        Self { head, rows: Vec::new() }
    }

    /// Adds a row with as many cells as the head has; `strong` ones stand out.
    pub(crate) fn push(&mut self, cells: Vec<String>, strong: bool) {
        self.rows.push((cells, strong));
    }

    pub(crate) fn to_text(&self) -> String {
        let widths: Vec<usize> = (0..self.head.len())
            .map(|column| {
                let cells = self.rows.iter().map(|(cells, _)| cells).chain([&self.head]);
                cells
                    .filter_map(|cells| cells.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let line = |mark: &str, cells: &[String]| {
            let mut line = mark.to_owned();
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                let padding = " ".repeat(width - cell.chars().count());
                // Names to the left, figures to the right.
                let (before, after) =
                    if column == 0 { ("", padding.as_str()) } else { (padding.as_str(), "") };
                line.push_str(&format!("{before}{cell}{after}  "));
            }
            line.trim_end().to_owned() + "\n"
        };
        let rows =
            self.rows.iter().map(|(cells, strong)| line(if *strong { "* " } else { "  " }, cells));
        line("  ", &self.head) + &rows.collect::<String>()
    }

    pub(crate) fn to_markdown(&self) -> String {
        let line = |cells: &[String], mark: &str| {
            let show = |cell: &String| match cell.as_str() {
                "" => String::new(),
                text => format!("{mark}{}{mark}", text.replace('|', "\\|")),
            };
            format!("| {} |\n", cells.iter().map(show).collect::<Vec<_>>().join(" | "))
        };
        let rule: Vec<&str> =
            (0..self.head.len()).map(|column| if column == 0 { "---" } else { "--:" }).collect();
        let rows =
            self.rows.iter().map(|(cells, strong)| line(cells, if *strong { "**" } else { "" }));
        line(&self.head, "") + &format!("|{}|\n", rule.join("|")) + &rows.collect::<String>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["", "s"].map(str::to_owned).to_vec());
        table.push(["ours", "1.5"].map(str::to_owned).to_vec(), true);
        table.push(["the|other", "12.5"].map(str::to_owned).to_vec(), false);
        table
    }

    #[test]
    fn text_is_aligned_and_marks_ours() {
        assert_eq!(table().to_text(), "                s\n* ours        1.5\n  the|other  12.5\n");
    }

    #[test]
    fn markdown_has_a_rule_and_ours_in_bold() {
        let expected = "|  | s |\n|---|--:|\n| **ours** | **1.5** |\n| the\\|other | 12.5 |\n";
        assert_eq!(table().to_markdown(), expected);
    }
}
