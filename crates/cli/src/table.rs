//! Tables for people.

/// Columns of text, numbers to the right.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// As this terminal shows it best: where the rows are wider than it is, headings go down the side, a row of the
    /// table in each column; where that is too wide, too, row after row, without empty cells. A file or a pipe gets the rows.
    pub fn on(&self, terminal: &console::Term) -> String {
        match terminal.size_checked() {
            Some((_, columns)) => self.within(columns.into()),
            None => self.to_string(),
        }
    }

    /// [`on`](Self::on), for a terminal of so many columns.
    fn within(&self, columns: usize) -> String {
        let fits = |text: &String| text.lines().all(|line| line.chars().count() <= columns);
        let rows = self.to_string();
        if fits(&rows) || self.rows.len() < 2 {
            return rows;
        }
        let turned = Self::turned(&self.rows.iter().collect::<Vec<_>>()).aligned(|_| false);
        if fits(&turned) {
            return turned;
        }
        // What a row leaves empty needs no line of its own.
        let single = |row| {
            let mut turned = Self::turned(&[&self.rows[0], row]);
            turned.rows.iter_mut().flatten().for_each(|cell| *cell = cell.trim().to_owned());
            turned.rows.retain(|row| !row[1].is_empty());
            turned.aligned(|_| false)
        };
        self.rows[1..].iter().map(single).collect::<Vec<_>>().join("\n")
    }

    /// These rows as columns.
    fn turned(rows: &[&Vec<String>]) -> Self {
        let columns = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        let column = |at: usize| rows.iter().map(|row| row.get(at).cloned().unwrap_or_default()).collect();
        Self { rows: (0..columns).map(column).collect() }
    }

    /// A line for each row; these columns to the right.
    fn aligned(&self, to_the_right: impl Fn(usize) -> bool) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
        let width =
            |column: usize| self.rows.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0);
        let mut lines = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for column in 0..columns {
                let text = cell(row, column);
                let pad = " ".repeat(width(column) - text.chars().count());
                line +=
                    &if to_the_right(column) { format!("{pad}{text}  ") } else { format!("{text}{pad}  ") };
            }
            lines += line.trim_end();
            lines.push('\n');
        }
        lines
    }
}

impl std::fmt::Display for Table {
    /// A line for each row.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let numeric = |column: usize| {
            self.rows[1..].iter().all(|row| {
                let first = row.get(column).and_then(|cell| cell.chars().next());
                first.is_none_or(|c| c.is_ascii_digit() || c == '-' || c == '?')
            })
        };
        f.write_str(&self.aligned(numeric))
    }
}

/// Bytes in the largest binary unit that keeps a digit before the point.
pub fn bytes(bytes: u64) -> String {
    halfbyte::human_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_to_the_right() {
        let mut table = Table::new(&["device", "free"]);
        table.row(["cpu".to_owned(), "9 B".to_owned()]);
        table.row(["wgpu:0".to_owned(), "12.5 GiB".to_owned()]);
        assert_eq!(table.to_string(), "device      free\ncpu          9 B\nwgpu:0  12.5 GiB\n");
    }

    #[test]
    fn what_is_too_wide_is_turned_and_what_still_is_comes_row_after_row() {
        let mut table = Table::new(&["device", "free", "a long heading"]);
        table.row(["cpu".to_owned(), "9 B".to_owned(), "1".to_owned()]);
        table.row(["wgpu:0".to_owned(), "12.5 GiB".to_owned(), "2".to_owned()]);
        let rows = table.to_string();
        assert_eq!(table.within(80), rows);
        assert_eq!(table.within(32), rows);
        let turned = "device          cpu  wgpu:0\nfree            9 B  12.5 GiB\na long heading  1    2\n";
        assert_eq!(table.within(31), turned);
        let after = "device          cpu\nfree            9 B\na long heading  1\n\ndevice          wgpu:0\n";
        assert!(table.within(28).starts_with(after), "{}", table.within(28));
        assert_eq!(table.within(1), table.within(28));
        table.row(["  of it".to_owned(), "1 B".to_owned(), String::new()]);
        assert!(table.within(1).ends_with("\n\ndevice  of it\nfree    1 B\n"), "{}", table.within(1));
        assert_eq!(Table::new(&["a long heading"]).within(3), "a long heading\n");
    }
}
