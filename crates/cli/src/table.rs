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
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
        let width =
            |column: usize| self.rows.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0);
        let numeric = |column: usize| {
            self.rows[1..].iter().all(|row| {
                cell(row, column).chars().next().is_none_or(|c| c.is_ascii_digit() || c == '-' || c == '?')
            })
        };
        for row in &self.rows {
            let mut line = String::new();
            for column in 0..columns {
                let text = cell(row, column);
                let pad = " ".repeat(width(column) - text.chars().count());
                line += &if numeric(column) { format!("{pad}{text}  ") } else { format!("{text}{pad}  ") };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
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
}
