library ieee;
use ieee.std_logic_1164.all;
use ieee.numeric_std.all;

entity increment is
  generic (step : integer := 1);
  port (a : in unsigned(3 downto 0); y : out unsigned(3 downto 0));
end entity;

architecture rtl of increment is
begin
  y <= a + step;
end architecture;

library ieee;
use ieee.std_logic_1164.all;
use ieee.numeric_std.all;

entity Counter is
  generic (step : integer := 1);
  port (clk, rst_n, enable : in std_logic; count : out std_logic_vector(3 downto 0));
end entity;

architecture rtl of Counter is
  signal value, following : unsigned(3 downto 0);
begin
  adder : entity work.increment generic map (step => step) port map (a => value, y => following);

  process (clk, rst_n)
  begin
    if rst_n = '0' then
      value <= (others => '0');
    elsif rising_edge(clk) then
      if enable = '1' then
        value <= following;
      end if;
    end if;
  end process;

  count <= std_logic_vector(value);
end architecture;
